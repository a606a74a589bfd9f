"""Golden pictures for src/imaging: Pillow's antialiased bilinear resize, and a palette PNG.

    python3 tests/golden/make_resize.py        # needs Pillow and NumPy; writes beside itself

The input pictures are not stored: they follow from their size by the formula in `picture`, which the
test repeats. Stored is what Pillow makes of them.
"""

import json
import pathlib

import numpy as np
import PIL
from PIL import Image

HERE = pathlib.Path(__file__).parent

# (width, height) -> (width, height), with a box or none: down, up, mixed, odd, prime, identity, tiny
CASES = [
    ((64, 48), (16, 16), None),
    ((61, 47), (16, 24), None),
    ((100, 30), (17, 60), None),
    ((7, 5), (16, 16), None),
    ((16, 16), (16, 16), None),
    ((1, 1), (4, 3), None),
    ((128, 96), (16, 12), (13, 7, 90, 71)),
    ((33, 33), (32, 32), None),
]


def picture(width, height):
    """Sharp and smooth parts: an integer hash, in blocks of two by three, over a gradient."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint32)
    planes = []
    for c in range(3):
        h = ((x // 2) * 73856093) ^ ((y // 3) * 19349663) ^ (83492791 * (c + 1))
        h = (h & 0xFFFFFFFF).astype(np.uint64)
        noise = ((h * 2654435761) & 0xFFFFFFFF) >> 24
        planes.append(((noise + x * 3 + y * 5) & 0xFF).astype(np.uint8))
    return np.stack(planes, axis=-1)


def main():
    cases = []
    for (w, h), (ow, oh), box in CASES:
        image = Image.fromarray(picture(w, h), "RGB" if PIL.__version__ < "12" else None)
        if box:
            image = image.crop(box)
        out = np.asarray(image.resize((ow, oh), Image.BILINEAR))
        cases.append({"from": [w, h], "to": [ow, oh], "box": box, "rgb": out.tobytes().hex()})
    text = json.dumps({"pillow": PIL.__version__, "cases": cases}, indent=0)
    (HERE / "resize.json").write_text(text + "\n")

    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 1)
    palette.save(HERE / "palette.png")


main()
