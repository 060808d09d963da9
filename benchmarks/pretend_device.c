/* A pretended GPU for `streaming_cpu.py`: the driver calls that matchrt makes, on a device that does one piece of work at a time.
 *
 * Work takes the time it is said to take (`pretend_work`), copies take the time of 25 GB/s, and neither uses a core. Who waits, sleeps.
 * Memory is the host's; nothing is computed or copied. Thread safe.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct { double done, captured; int capturing; } Stream;
typedef struct { double at; } Event;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static double device_free;
static __thread void *stack[16];
static __thread int depth;
int64_t calls, device_blocks, pinned_blocks;
double busy;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void sleep_until(double when) {
    struct timespec t = {(time_t)when, (long)((when - (double)(time_t)when) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0)) {}
}
static double later(double a, double b) { return a > b ? a : b; }
static void compute(Stream *s, double seconds) {
    pthread_mutex_lock(&lock);
    double begin = later(now(), later(s->done, device_free));
    s->done = device_free = begin + seconds;
    busy += seconds;
    pthread_mutex_unlock(&lock);
}
#define COUNT __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED)

int cuInit(unsigned f) { return 0; }
int cuGetErrorName(int c, const char **n) { *n = "CUDA_ERROR"; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = &lock; return 0; }
int cuCtxGetCurrent(void **c) { COUNT; *c = depth ? stack[depth - 1] : 0; return 0; }
int cuCtxPushCurrent_v2(void *c) { COUNT; stack[depth++] = c; return 0; }
int cuCtxPopCurrent_v2(void **c) { COUNT; *c = stack[--depth]; return 0; }
int cuMemAlloc_v2(uint64_t *p, size_t n) { COUNT; device_blocks++; *p = (uint64_t)malloc(n); return 0; }
int cuMemFree_v2(uint64_t p) { COUNT; free((void *)p); return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { COUNT; pinned_blocks++; *p = malloc(n); memset(*p, 0, n); return 0; }
int cuMemFreeHost(void *p) { COUNT; free(p); return 0; }
static int copy(Stream *s, size_t n) { COUNT; s->done = later(now(), s->done) + n / 25e9; return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t d, const void *h, size_t n, void *s) { return copy(s, n); }
int cuMemcpyDtoHAsync_v2(void *h, uint64_t d, size_t n, void *s) { memset(h, 0, n); return copy(s, n); }
int cuStreamCreate(void **s, unsigned f) { *s = calloc(1, sizeof(Stream)); return 0; }
int cuStreamDestroy_v2(void *s) { free(s); return 0; }
int cuStreamSynchronize(void *s) { COUNT; sleep_until(((Stream *)s)->done); return 0; }
int cuStreamWaitEvent(void *s, void *e, unsigned f) { COUNT; ((Stream *)s)->done = later(((Stream *)s)->done, ((Event *)e)->at); return 0; }
int cuEventCreate(void **e, unsigned f) { COUNT; *e = calloc(1, sizeof(Event)); return 0; }
int cuEventRecord(void *e, void *s) { COUNT; ((Event *)e)->at = ((Stream *)s)->done; return 0; }
int cuEventQuery(void *e) { COUNT; return now() < ((Event *)e)->at ? 600 : 0; }
int cuEventSynchronize(void *e) { COUNT; sleep_until(((Event *)e)->at); return 0; }
int cuEventDestroy_v2(void *e) { COUNT; free(e); return 0; }
int cuEventElapsedTime(float *ms, void *a, void *b) { *ms = (float)(((Event *)b)->at - ((Event *)a)->at) * 1e3f; return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *t = 1u << 30; *f = 1u << 29; return 0; }
int cuStreamBeginCapture_v2(void *s, int m) { COUNT; ((Stream *)s)->capturing = 1; ((Stream *)s)->captured = 0; return 0; }
int cuStreamEndCapture(void *h, void **g) {
    Stream *s = h;
    double *graph = malloc(sizeof(double));
    COUNT; *graph = s->captured; s->capturing = 0; *g = graph;
    return 0;
}
int cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long f) { COUNT; *x = malloc(sizeof(double)); *(double *)*x = *(double *)g; return 0; }
int cuGraphLaunch(void *x, void *s) { COUNT; compute(s, *(double *)x); return 0; }
int cuGraphExecDestroy(void *x) { free(x); return 0; }
int cuGraphDestroy(void *g) { free(g); return 0; }
/* What an engine's enqueue puts on a stream. */
int pretend_work(void *h, double seconds) {
    Stream *s = h;
    if (s->capturing) s->captured += seconds; else compute(s, seconds);
    return 0;
}
