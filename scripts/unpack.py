"""Unpacks what scripts/setup.sh downloaded: unpack.py {nvrtc|weights|elpv} WHEEL_DIR DEST

Reads the archives, runs nothing of them. DEST appears whole or not at all, except for weights,
where files that are already in the folder stay.
"""

import os
import pathlib
import random
import re
import shutil
import sys
import zipfile


def wheels(folder):
    return [zipfile.ZipFile(path) for path in sorted(pathlib.Path(folder).glob("*.whl"))]


def write(archive, member, path):
    """One member, under a temporary name until it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + ".tmp")
    with archive.open(member) as source, open(tmp, "wb") as target:
        shutil.copyfileobj(source, target)
    os.replace(tmp, path)


def nvrtc(archives, dest):
    """The library, its builtins (which it looks for in its own folder), the fp16 header, the licence.
    Left out: the `.alt` copies, 114 MB that nothing here loads."""
    keep = re.compile(
        r"(nvidia/cuda_nvrtc/lib/libnvrtc\.so\.\d+"
        r"|nvidia/cuda_nvrtc/lib/libnvrtc-builtins\.so\.[\d.]+"
        r"|nvidia/cuda_runtime/include/cuda_fp16\.h(?:pp)?"
        r"|[^/]+\.dist-info/licenses/License\.txt)"
    )
    for archive in archives:
        for member in archive.namelist():
            if keep.fullmatch(member):
                write(archive, member, dest / member)


def elpv(archives, dest):
    """Monocrystalline cells in MVTec layout. Good = defect probability 0 (70 % of them to learn
    from), defective = probability 1; what the annotators were unsure of (1/3, 2/3) is left out."""
    (archive,) = archives
    root = "elpv_dataset/data/"
    rows = [line.split() for line in archive.read(root + "labels.csv").decode().splitlines() if line.strip()]
    good = sorted(path for path, label, kind in rows if kind == "mono" and float(label) == 0)
    bad = sorted(path for path, label, kind in rows if kind == "mono" and float(label) == 1)
    random.Random(int(os.environ.get("DEMO_SEED", "7"))).shuffle(good)
    cut = int(0.7 * len(good))
    for folder, paths in (("train/good", good[:cut]), ("test/good", good[cut:]), ("test/defective", bad)):
        for path in paths:
            write(archive, root + path, dest / folder / pathlib.Path(path).name)
    for member in archive.namelist():
        if member.endswith("licenses/LICENSE.md"):
            write(archive, member, dest / "LICENSE.md")
    print(f"    {cut} good to learn from, {len(good) - cut} good and {len(bad)} defective to test on")


def weights(archives, dest):
    (archive,) = archives
    for member in archive.namelist():
        if member.endswith(".pth"):
            write(archive, member, dest / "efficientnet_lite0.pth")


def main():
    kind, source, dest = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    archives = wheels(source)
    if kind == "weights":
        weights(archives, dest)
        return
    tmp = dest.with_name(dest.name + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    {"nvrtc": nvrtc, "elpv": elpv}[kind](archives, tmp)
    shutil.rmtree(dest, ignore_errors=True)
    os.replace(tmp, dest)


if __name__ == "__main__":
    main()
