"""Compare the `mini` weights with OpenCV's SIFT and ORB on held-out pairs, in one run.

    uv run python plugins/lightglue/training/evaluate.py --receipt docs/benchmarks/mini-matching.json
    uv run python plugins/lightglue/training/evaluate.py --table docs/benchmarks/mini-matching.json

The first command writes the receipt and the Markdown table beside it; the second only writes the table again.
All methods get the same grey images, keep at most 1024 keypoints and end in the same
`cv2.findHomography(..., cv2.USAC_MAGSAC, 3.0)`. Our extractor sees an image at the size that `[inference]` in
`config.toml` says, as upstream's does; SIFT doubles the image itself. SIFT and ORB: mutual nearest neighbours that
pass the ratio test. `--split training` is for choosing settings: the receipt is made of held-out photographs only.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from heldout import Pair, draw_matches, held_out_pairs, project, reprojection
from safetensors.torch import load_file
from settings import HERE, load_config

from matchrt_lightglue.networks import LightGlue, SuperPoint

KEYPOINTS = 1024
RATIO = 0.8
Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Keypoints of both images, then the matched ones of both, all (N, 2) float64."""


class Mini:
    """Our two networks in float32 with the shipped weights."""

    def __init__(self, folder: Path, config: dict[str, Any], inference: dict[str, Any]) -> None:
        self.longest, self.score = inference["longest"], inference["score"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.extractor = SuperPoint(
            **config["superpoint"], max_keypoints=KEYPOINTS, detection_threshold=inference["detection"]
        )
        self.matcher = LightGlue(**config["lightglue"])
        for network, name in ((self.extractor, "superpoint"), (self.matcher, "lightglue")):
            state = load_file(folder / f"{name}_mini.safetensors")
            network.load_state_dict({k: v.float() for k, v in state.items()})
            network.eval().to(self.device)

    @torch.no_grad()
    def __call__(self, image0: np.ndarray, image1: np.ndarray) -> tuple[Found, Found]:
        """With LightGlue, and the same keypoints with mutual nearest neighbours."""
        inputs, found = [], []
        for image in (image0, image1):
            sized, factors = enlarge(image, self.longest)
            tensor = torch.from_numpy(sized).to(self.device)[None, None].float() / 255
            size = torch.tensor([sized.shape], dtype=torch.int32, device=self.device)
            out = self.extractor(tensor, torch.from_numpy(factors[None, ::-1].copy()).float().to(self.device), size)
            original = torch.tensor([image.shape], dtype=torch.float32, device=self.device)
            inputs += [out.keypoints, out.descriptors, out.counts, original]
            n = int(out.counts)
            found.append((out.keypoints[0, :n].double().cpu().numpy(), out.descriptors[0, :n]))
        matching = self.matcher(*inputs)
        (k0, d0), (k1, d1) = found
        matches, scores = matching.matches0[0, : len(k0)].cpu().numpy(), matching.scores0[0, : len(k0)].cpu().numpy()
        keep = (matches >= 0) & (scores > self.score)
        near = mutual((d0 @ d1.T).cpu().numpy()) if len(k0) and len(k1) else np.zeros((0, 2), int)
        return (k0, k1, k0[keep], k1[matches[keep]]), (k0, k1, k0[near[:, 0]], k1[near[:, 1]])


def mutual(similarity: np.ndarray) -> np.ndarray:
    """(M, 2) index pairs that are each other's most similar."""
    forward, back = similarity.argmax(1), similarity.argmax(0)
    index = np.arange(len(forward))
    keep = back[forward] == index
    return np.stack((index[keep], forward[keep]), 1)


def enlarge(image: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """`image` with its longer side at `longest` (0: as it is), and the factors (x, y) that it was scaled by."""
    factor = longest / max(image.shape) if longest else 1.0
    sized = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR) if factor != 1 else image
    return sized, np.array([sized.shape[1] / image.shape[1], sized.shape[0] / image.shape[0]])


def classical(detector: Any, norm: int, longest: int = 0) -> Callable[[np.ndarray, np.ndarray], Found]:
    """A method made of an OpenCV detector, mutual nearest neighbours and the ratio test."""
    matcher = cv2.BFMatcher(norm)

    def run(image0: np.ndarray, image1: np.ndarray) -> Found:
        keypoints, descriptors = [], []
        for image in (image0, image1):
            sized, factors = enlarge(image, longest)
            points, described = detector.detectAndCompute(sized, None)
            order = np.argsort([-p.response for p in points], kind="stable")[:KEYPOINTS]
            keypoints.append((np.array([points[i].pt for i in order], np.float64).reshape(-1, 2) + 0.5) / factors - 0.5)
            descriptors.append(described[order] if len(order) else None)
        if descriptors[0] is None or descriptors[1] is None or min(map(len, keypoints)) < 2:
            return (*keypoints, np.zeros((0, 2)), np.zeros((0, 2)))
        back = {m[0].queryIdx: m[0].trainIdx for m in matcher.knnMatch(descriptors[1], descriptors[0], k=1)}
        good = [
            (a.queryIdx, a.trainIdx)
            for a, b in matcher.knnMatch(descriptors[0], descriptors[1], k=2)
            if a.distance < RATIO * b.distance and back.get(a.trainIdx) == a.queryIdx
        ]
        index = np.array(good, int).reshape(-1, 2)
        return keypoints[0], keypoints[1], keypoints[0][index[:, 0]], keypoints[1][index[:, 1]]

    return run


def repeatability(k0: np.ndarray, k1: np.ndarray, pair: Pair, radius: float = 3.0) -> float:
    """Mutually nearest keypoints within `radius`, over the smaller number of keypoints in the shared area."""
    there, back = project(k0, pair.homography), project(k1, np.linalg.inv(pair.homography))
    (h0, w0), (h1, w1) = pair.image0.shape, pair.image1.shape
    seen0 = ((there >= 0) & (there <= (w1 - 1, h1 - 1))).all(1) if len(k0) else np.zeros(0, bool)
    seen1 = ((back >= 0) & (back <= (w0 - 1, h0 - 1))).all(1) if len(k1) else np.zeros(0, bool)
    if not seen0.any() or not seen1.any():
        return 0.0
    distance = np.linalg.norm(there[seen0][:, None] - k1[seen1][None], axis=2)
    near = mutual(-distance)
    return float((distance[near[:, 0], near[:, 1]] <= radius).sum() / min(distance.shape))


def figures(found: Found, pair: Pair) -> dict[str, float]:
    """Everything measured on one pair by one method."""
    k0, k1, m0, m1 = found
    error = reprojection(m0, m1, pair.homography)
    out = {
        "repeatability": repeatability(k0, k1, pair),
        "keypoints": float(len(k0) + len(k1)) / 2,
        "matches": float(len(m0)),
    }
    for pixels in (1, 3, 5):
        out[f"accuracy_{pixels}px"] = float((error <= pixels).mean()) if len(error) else 0.0
    corner = corner_error(m0, m1, pair)
    out.update({f"corners_{pixels}px": float(corner <= pixels) for pixels in (1, 3, 5)})
    out["corner_error"] = min(corner, 1e3)
    return out


def corner_error(m0: np.ndarray, m1: np.ndarray, pair: Pair) -> float:
    """Mean distance of image 0's four corners under the estimated and the true homography, or infinity."""
    if len(m0) < 4:
        return float("inf")
    H, _ = cv2.findHomography(m0, m1, cv2.USAC_MAGSAC, 3.0, maxIters=10000, confidence=0.9999)
    if H is None or not np.isfinite(H).all():
        return float("inf")
    height, width = pair.image0.shape
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)
    error = float(reprojection(corners, project(corners, pair.homography), H).mean())
    return error if np.isfinite(error) else float("inf")


def measure(pairs: list[Pair], mini: Mini, pictures: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    """method -> group -> figure -> mean over the group's pairs."""
    # The precise pyramid takes away SIFT's known quarter-pixel bias.
    sift = classical(cv2.SIFT_create(nfeatures=KEYPOINTS, enable_precise_upscale=True), cv2.NORM_L2)
    orb = classical(cv2.ORB_create(nfeatures=KEYPOINTS), cv2.NORM_HAMMING)
    sift_large = classical(cv2.SIFT_create(nfeatures=KEYPOINTS, enable_precise_upscale=True), cv2.NORM_L2, mini.longest)
    orb_large = classical(cv2.ORB_create(nfeatures=KEYPOINTS), cv2.NORM_HAMMING, mini.longest)
    rows: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for number, pair in enumerate(pairs):
        ours, plain = mini(pair.image0, pair.image1)
        methods = {"mini": ours, "mini extractor, nearest neighbours": plain}
        methods |= {"SIFT": sift(pair.image0, pair.image1), "ORB": orb(pair.image0, pair.image1)}
        if mini.longest:
            methods["SIFT, enlarged images"] = sift_large(pair.image0, pair.image1)
            methods["ORB, enlarged images"] = orb_large(pair.image0, pair.image1)
        for method, found in methods.items():
            result = figures(found, pair)
            for group in pair.groups:
                rows[method][group].append(result)
        if pictures and number % max(1, len(pairs) // 24) == number // 24 % 2:
            for method in ("mini", "SIFT"):
                draw_matches(pair, *methods[method][2:], pictures / f"{number:03d}_{method}.jpg")
    return {
        method: {
            group: {
                "pairs": len(all_),
                **{k: float(np.mean([r[k] for r in all_])) for k in all_[0] if k != "corner_error"},
            }
            | {"median_corner_error": float(np.median([r["corner_error"] for r in all_]))}
            for group, all_ in groups.items()
        }
        for method, groups in rows.items()
    }


COLUMNS = {
    "repeatability": "repeatability",
    "accuracy_1px": "right at 1 px",
    "accuracy_3px": "at 3 px",
    "accuracy_5px": "at 5 px",
    "corners_3px": "corners within 3 px",
    "corners_5px": "within 5 px",
    "matches": "matches",
}


def table(receipt: dict[str, Any]) -> str:
    """The Markdown page of a receipt."""
    s = receipt["settings"]
    seen = "that training never saw" if s["split"] == "held_out" else "of the training set (for choosing settings only)"
    lines = [
        "# Matching with the `mini` weights",
        "",
        f"{s['pairs']} pairs of {len(s['photographs'])} photographs {seen}, seed {s['seed']}, {receipt['date']}. "
        f"At most {KEYPOINTS} keypoints; USAC_MAGSAC at 3 px for all. OpenCV {receipt['versions']['opencv']}.",
        "Rotations up to 45°, scale 0.7 to 1.4. Accuracy is the share of a pair's matches within so many pixels of the "
        "truth (0 for a",
        "pair without matches); corners: mean distance of the four corners under the estimated homography.",
        "Our extractor and the rows marked so see each image enlarged to "
        f"{s['inference']['longest']} pixels on its longer side.",
        "",
        "Regenerate: `uv run python plugins/lightglue/training/evaluate.py "
        "--receipt docs/benchmarks/mini-matching.json`.",
        "",
    ]
    for group in receipt["results"]["mini"]:
        count = receipt["results"]["mini"][group]["pairs"]
        lines += [
            f"## {group} ({count} pairs)",
            "",
            "| method | " + " | ".join(COLUMNS.values()) + " |",
            "|---" * 8 + "|",
        ]
        for method, groups in receipt["results"].items():
            cells = [
                f"{groups[group][k]:.0f}" if k == "matches" else f"{100 * groups[group][k]:.1f} %" for k in COLUMNS
            ]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=HERE.parent / "src/matchrt_lightglue/data/mini")
    parser.add_argument("--receipt", type=Path, help="JSON file to write; the table goes beside it")
    parser.add_argument("--table", type=Path, help="only write the table of this receipt")
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, one pair a photograph")
    parser.add_argument("--longest", type=int, help="longer side our extractor sees; 0: as the image is")
    parser.add_argument("--detection", type=float, help="detection threshold of our extractor")
    parser.add_argument("--split", choices=("held_out", "training"), default="held_out", help="which photographs")
    parser.add_argument("--each", type=int, default=40, help="pairs per photograph")
    parser.add_argument("--photographs", type=Path, help="folder with photographs of packages that are not installed")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of matches")
    args = parser.parse_args()
    cv2.setNumThreads(2)
    if args.table:
        args.table.with_suffix(".md").write_text(table(json.loads(args.table.read_text())))
        return
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    config = load_config(args.config, smoke=args.smoke)
    inference = config["inference"] | {k: v for k in ("longest", "detection") if (v := getattr(args, k)) is not None}
    names = [n for n in config["photographs"][args.split] if not n.endswith("_right.png")]
    pairs = held_out_pairs(names, 1 if args.smoke else args.each, config["seed"], args.photographs)
    results = measure(pairs, Mini(args.weights, config["network"], inference), args.pictures)
    receipt = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "settings": {
            "seed": config["seed"],
            "pairs": len(pairs),
            "photographs": names,
            "keypoints": KEYPOINTS,
            "ratio": RATIO,
            "inference": inference,
            "split": args.split,
            "estimator": "USAC_MAGSAC 3 px, 10000 iterations, confidence 0.9999",
        },
        "versions": {"opencv": cv2.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "weights": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(args.weights.glob("*.safetensors"))
        },
        "results": results,
    }
    if args.receipt:
        args.receipt.parent.mkdir(parents=True, exist_ok=True)
        args.receipt.write_text(json.dumps(receipt, indent=1) + "\n")
        args.receipt.with_suffix(".md").write_text(table(receipt))
    print(table(receipt))


if __name__ == "__main__":
    main()
