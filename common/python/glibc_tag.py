"""Prints the manylinux tag of a wheel: the newest version of glibc that one of the given programs needs, at least 2.17."""

import re
import sys
from pathlib import Path

versions = {17}
for program in sys.argv[1:]:
    # Names of symbol versions, as the dynamic string table of a program holds them.
    versions.update(int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?:\.\d+)?(?=\0)", Path(program).read_bytes()))
print(f"manylinux_2_{max(versions)}")
