"""Golden figures for src/eval/pixels.rs: pixel AUROC and PRO by brute force, written for reading.

    python3 tests/golden/make_pixels.py        # needs NumPy; writes beside itself

Every distinct score is a threshold; regions by flood fill, 8-connected; AUROC over all pairs.
"""

import json
import pathlib

import numpy as np

SIDE = 16
LIMIT = 0.3


def regions(mask):
    seen = np.zeros_like(mask, dtype=bool)
    found = []
    for seed in np.argwhere(mask):
        if seen[tuple(seed)]:
            continue
        region, open_ = np.zeros_like(mask, dtype=bool), [tuple(seed)]
        seen[tuple(seed)] = True
        while open_:
            y, x = open_.pop()
            region[y, x] = True
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    n = (y + dy, x + dx)
                    if 0 <= n[0] < mask.shape[0] and 0 <= n[1] < mask.shape[1] and mask[n] and not seen[n]:
                        seen[n] = True
                        open_.append(n)
        found.append(region)
    return found


def main():
    rng = np.random.default_rng(11)
    pictures = []
    for i in range(4):
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        if i > 0:
            for _ in range(3):
                y, x = rng.integers(0, SIDE, 2)
                h, w = rng.integers(1, 6, 2)
                mask[y : y + h, x : x + w] = True
        # a noisy map that knows the defect a little, on a coarse grid so that scores tie
        noise = rng.normal(size=(SIDE, SIDE)) + 1.2 * mask
        pictures.append((np.round(noise * 4) / 4, mask))

    scores = np.stack([m for m, _ in pictures])
    truth = np.stack([t for _, t in pictures])
    positive, negative = scores[truth], scores[~truth]
    pairs = (positive[:, None] > negative[None]).mean() + 0.5 * (positive[:, None] == negative[None]).mean()

    found = [(i, region) for i, (_, mask) in enumerate(pictures) for region in regions(mask)]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        fpr.append((negative >= threshold).mean())
        pro.append(np.mean([(scores[i][region] >= threshold).mean() for i, region in found]))
    fpr, pro = np.array(fpr), np.array(pro)
    at_limit = np.interp(LIMIT, fpr, pro)
    keep = fpr < LIMIT
    x, y = np.append(fpr[keep], LIMIT), np.append(pro[keep], at_limit)
    area = np.trapezoid(y, x) / LIMIT

    out = {
        "width": SIDE,
        "regions": len(found),
        "auroc": float(pairs),
        "pro": float(area),
        "pictures": [
            {
                "map": m.ravel().tolist(),
                "mask": "".join("1" if v else "0" for v in t.ravel()) if t.any() else None,
            }
            for m, t in pictures
        ],
    }
    path = pathlib.Path(__file__).parent / "pixels.json"
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(out["regions"], out["auroc"], out["pro"])


main()
