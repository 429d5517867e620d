"""Write data_manifest.csv anew: python scripts/make_manifest.py [DATA]

DATA holds label maps of KiTS19, such as the folder ``data`` of a clone of the official repository. The rows
of cases that DATA does not hold keep their values. The sizes and hashes of the images of 2019 stay as they are, too.
Splits and known problems are always brought up to date.
"""

import sys
from pathlib import Path

from kitsseg.data.kits19.make_manifest import make_manifest
from kitsseg.data.kits19.manifest import read_manifest, write_manifest

MANIFEST = Path(__file__).parent.parent / "data_manifest.csv"
# a second copy of the file, because not every system supports symbolic links
SHIPPED = MANIFEST.parent / "kitsseg" / MANIFEST.name


def main():
    data = sys.argv[1] if len(sys.argv) > 1 else None
    before = read_manifest(MANIFEST)
    manifest, computed = make_manifest(data, before)
    for path in (MANIFEST, SHIPPED):
        write_manifest(manifest, path)
    changed = [case for case in manifest if manifest[case] != before.get(case)]
    print(f"{MANIFEST}: {len(computed)} cases computed, {len(changed)} changed: {' '.join(changed)}")


if __name__ == "__main__":
    main()
