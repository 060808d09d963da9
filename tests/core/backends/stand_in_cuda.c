/* A stand-in for the CUDA driver that runs work as late as it may.
 *
 * Streams are queues. What is put on one runs only when somebody waits for it (cuStreamSynchronize, cuEventSynchronize, or a wait of
 * another stream that is itself waited for). Code that reads a result, or reuses a buffer, without waiting therefore sees old
 * bytes, as it sooner or later would on a device. Every call but the first few needs the primary context to be current. Counters
 * tell what is allocated. Device memory is host memory. Not thread safe beyond one lock held by the caller's interpreter.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void (*HostFn)(void *);
typedef struct Stream Stream;
typedef struct { int kind; void *dst; const void *src; size_t n; HostFn fn; void *data; Stream *on; uint64_t upto; } Op;
enum { COPY, CALL, WAIT, FILL };
struct Stream { Op *ops; uint64_t begin, end, room; int capturing, busy; Op *taken; uint64_t ntaken; };
typedef struct { Stream *on; uint64_t upto; int timed; } Event;
typedef struct { Op *ops; uint64_t n; } Graph;

static int primary_context, started;
static __thread void *stack[16];
static __thread int depth;
static Stream legacy;
int64_t live_device, total_device, live_pinned, total_pinned, live_events, live_graphs, launches, captures, context_errors, peak_depth;
int fail_alloc, fail_capture, device_count = 1;

static int bad(void) {
    if (depth && stack[depth - 1] == (void *)&primary_context) return 0;
    context_errors++;
    return 201;
}
#define CHECK do { int code = bad(); if (code) return code; } while (0)

static Stream *real(void *handle) { return (uintptr_t)handle <= 2 ? &legacy : (Stream *)handle; }
static void push(Stream *s, Op op) {
    if (s->end == s->room) { s->room = s->room ? s->room * 2 : 64; s->ops = realloc(s->ops, s->room * sizeof(Op)); }
    s->ops[s->end++] = op;
}
static void drain(Stream *s, uint64_t upto) {
    while (s->begin < upto) {
        Op op = s->ops[s->begin++];
        if (op.kind == COPY) memcpy(op.dst, op.src, op.n);
        else if (op.kind == CALL) op.fn(op.data);
        else if (op.kind == WAIT) drain(op.on, op.upto);
    }
}

int cuInit(unsigned flags) { started = 1; return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = device_count; return started ? 0 : 3; }
int cuDeviceGet(int *d, int i) { *d = i; return i < device_count ? 0 : 101; }
int cuDeviceGetName(char *name, int n, int d) { strncpy(name, "Stand-in GPU", n); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = 1u << 30; return 0; }
int cuDeviceGetAttribute(int *v, int which, int d) { *v = which == 75 ? 8 : which == 76 ? 9 : 16; return 0; }
int cuGetErrorName(int code, const char **name) { *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR"; return 0; }
int cuDevicePrimaryCtxRetain(void **ctx, int d) { *ctx = &primary_context; return 0; }
int cuCtxGetCurrent(void **ctx) { *ctx = depth ? stack[depth - 1] : 0; return 0; }
int cuCtxPushCurrent_v2(void *ctx) { stack[depth++] = ctx; if (depth > peak_depth) peak_depth = depth; return 0; }
int cuCtxPopCurrent_v2(void **ctx) { if (!depth) return 201; *ctx = stack[--depth]; return 0; }
int cuMemAlloc_v2(uint64_t *p, size_t n) {
    CHECK;
    if (fail_alloc) return 2;
    *p = (uint64_t)aligned_alloc(512, (n + 511) / 512 * 512); memset((void *)*p, 0xAA, n); live_device++; total_device++; return 0;
}
int cuMemFree_v2(uint64_t p) { CHECK; memset((void *)p, 0xDD, 1); free((void *)p); live_device--; return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { CHECK; *p = malloc(n); live_pinned++; total_pinned++; return 0; }
int cuMemFreeHost(void *p) { CHECK; free(p); live_pinned--; return 0; }
static int copy(void *dst, const void *src, size_t n, void *h) {
    CHECK;
    Stream *s = real(h);
    if (s->capturing) return 900;
    push(s, (Op){.kind = COPY, .dst = dst, .src = src, .n = n});
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t dst, const void *src, size_t n, void *s) { return copy((void *)dst, src, n, s); }
int cuMemcpyDtoHAsync_v2(void *dst, uint64_t src, size_t n, void *s) { return copy(dst, (void *)src, n, s); }
int cuStreamCreate(void **s, unsigned f) { CHECK; *s = calloc(1, sizeof(Stream)); return 0; }
int cuStreamDestroy_v2(void *s) { CHECK; return 0; }
int cuStreamSynchronize(void *h) { CHECK; Stream *s = real(h); if (s->capturing) return 900; drain(s, s->end); return 0; }
int cuStreamWaitEvent(void *h, void *e, unsigned f) {
    CHECK;
    Event *event = e;
    if (event->on) push(real(h), (Op){.kind = WAIT, .on = event->on, .upto = event->upto});
    return 0;
}
int cuEventCreate(void **e, unsigned f) { CHECK; Event *made = *e = calloc(1, sizeof(Event)); made->timed = !(f & 2); live_events++; return 0; }
int cuEventRecord(void *e, void *h) {
    CHECK;
    Stream *s = real(h);
    if (s->capturing) return 900;
    *(Event *)e = (Event){s, s->end, ((Event *)e)->timed};
    return 0;
}
int cuEventQuery(void *e) { CHECK; Event *event = e; return event->on && event->on->begin < event->upto ? 600 : 0; }
int cuEventSynchronize(void *e) { CHECK; Event *event = e; if (event->on) drain(event->on, event->upto); return 0; }
int cuEventDestroy_v2(void *e) { CHECK; free(e); live_events--; return 0; }
/* One millisecond for each operation between the two, once both have passed. */
int cuEventElapsedTime(float *ms, void *a, void *b) {
    CHECK;
    Event *from = a, *to = b;
    if (!from->timed || !to->timed || !from->on || !to->on) return 400;
    if (from->on->begin < from->upto || to->on->begin < to->upto) return 600;
    *ms = (float)to->upto - (float)from->upto;
    return 0;
}
int cuMemGetInfo_v2(size_t *unused, size_t *total) {
    CHECK;
    *total = 1u << 30;
    *unused = *total - (size_t)live_device * 4096;
    return 0;
}
int cuLaunchHostFunc(void *h, HostFn fn, void *data) {
    CHECK;
    Stream *s = real(h);
    Op op = {.kind = CALL, .fn = fn, .data = data};
    if (s->capturing) {
        s->taken = realloc(s->taken, (s->ntaken + 1) * sizeof(Op));
        s->taken[s->ntaken++] = op;
    } else push(s, op);
    return 0;
}
int cuStreamBeginCapture_v2(void *h, int mode) {
    CHECK;
    if (fail_capture) return 900;
    Stream *s = real(h);
    s->capturing = 1; s->taken = 0; s->ntaken = 0; captures++;
    return 0;
}
int cuStreamEndCapture(void *h, void **g) {
    CHECK;
    Stream *s = real(h);
    if (!s->capturing) return 900;
    Graph *graph = calloc(1, sizeof(Graph));
    graph->ops = s->taken; graph->n = s->ntaken; s->capturing = 0; *g = graph;
    return 0;
}
int cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long f) {
    CHECK;
    Graph *exec = calloc(1, sizeof(Graph)), *graph = g;
    exec->n = graph->n; exec->ops = malloc((graph->n + 1) * sizeof(Op));
    memcpy(exec->ops, graph->ops, graph->n * sizeof(Op));
    *x = exec; live_graphs++;
    return 0;
}
int cuGraphLaunch(void *x, void *h) {
    CHECK;
    Graph *g = x;
    for (uint64_t i = 0; i < g->n; i++) push(real(h), g->ops[i]);
    launches++;
    return 0;
}
int cuGraphExecDestroy(void *x) { CHECK; free(((Graph *)x)->ops); free(x); live_graphs--; return 0; }
int cuGraphDestroy(void *g) { CHECK; free(((Graph *)g)->ops); free(g); return 0; }
