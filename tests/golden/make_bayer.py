"""Golden pictures for src/imaging/bayer.rs: bilinear demosaicing by convolution, the textbook's way.

    python3 tests/golden/make_bayer.py        # needs NumPy and SciPy; writes beside itself

Each colour's samples, zeros between them, are convolved with a tent; borders are mirrored at the outermost
pixel, so the mosaic goes on beyond them. Where OpenCV is there too, the inside is held against it: it
rounds likewise, and has another idea of the border.
"""

import json
import pathlib

import numpy as np
from scipy.ndimage import convolve

GREEN = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
OTHER = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
# OpenCV names a mosaic by the second row's second and third pixels.
OPENCV = {"rggb": "BayerBG", "grbg": "BayerGB", "gbrg": "BayerGR", "bggr": "BayerRG"}


def demosaic(raw, mosaic):
    y, x = np.indices(raw.shape)
    place = (y % 2) * 2 + x % 2
    planes = []
    for colour in "rgb":
        at = np.isin(place, [i for i, c in enumerate(mosaic) if c == colour])
        kernel = GREEN if colour == "g" else OTHER
        planes.append(convolve(np.where(at, raw, 0).astype(float), kernel, mode="mirror"))
    # Quarters are exact in floating point; half goes up.
    return np.floor(np.stack(planes, -1) + 0.5).astype(np.uint8)


def main():
    rng = np.random.default_rng(7)
    cases = []
    for mosaic in OPENCV:
        for width, height in [(2, 2), (5, 4), (8, 3), (13, 9)]:
            raw = rng.integers(0, 256, (height, width), dtype=np.uint8)
            rgb = demosaic(raw, mosaic)
            try:
                import cv2

                theirs = cv2.cvtColor(raw, getattr(cv2, f"COLOR_{OPENCV[mosaic]}2RGB"))
                assert (theirs[1:-1, 1:-1] == rgb[1:-1, 1:-1]).all(), (mosaic, width, height)
            except ImportError:
                print("without OpenCV")
            case = {"mosaic": mosaic, "width": width, "height": height}
            cases.append(case | {"raw": raw.tobytes().hex(), "rgb": rgb.tobytes().hex()})
    path = pathlib.Path(__file__).parent / "bayer.json"
    path.write_text(json.dumps({"cases": cases}, separators=(",", ":")) + "\n")
    print(len(cases), "cases")


main()
