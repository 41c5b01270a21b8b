"""A root file system out of this machine's own Python: `make_rootfs.py FOLDER [--server] [--wheels FOLDER]`.

No registry can be reached where the tests run, so base images are made here: this Python's standard library and
pip, the C libraries that it needs, and a handful of programs. --server adds qwenbench's simulator, to stand in for
vLLM's image; --wheels adds wheels to install from.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PROGRAMS = ("sh", "sleep", "cat", "env", "id", "ls", "mkdir", "rm", "chown", "chmod", "touch")
WHEELS_NEED = (
    "libgcc_s.so.1", "libstdc++.so.6", "libm.so.6", "librt.so.1", "libpthread.so.0", "libdl.so.2", "libutil.so.1",
    "libresolv.so.2", "libnss_dns.so.2", "libnss_files.so.2",
)  # fmt: skip
NOT_NEEDED = shutil.ignore_patterns(
    "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "lib2to3", "turtledemo", "config-*", "*.a",
)  # fmt: skip
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


def libraries_of(binary: Path) -> set[Path]:
    """Shared libraries that a binary needs, its loader among them."""
    told = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", told)}


def copy_binary(root: Path, binary: Path, to: str) -> None:
    """Copies a program and its libraries."""
    target = root / to.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(binary.resolve(), target)
    copy_libraries(root, [binary])


def copy_libraries(root: Path, binaries: list[Path]) -> None:
    """Copies what these binaries need, to where they look for it."""
    for library in {library for binary in binaries for library in libraries_of(binary)}:
        target = root / str(library).lstrip("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library.resolve(), target)


def copy_library(root: Path, name: str) -> None:
    """Copies a library that the loader finds under this name, and what it needs."""
    told = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"^\s*{re.escape(name)} \(.*\) => (\S+)$", told, re.MULTILINE)
    assert found is not None, name
    copy_binary(root, Path(found[1]), found[1])


def copy_python(root: Path) -> Path:
    """Copies this Python to /usr/local; returns its site-packages."""
    prefix = root / "usr/local"
    stdlib = prefix / "lib" / VERSION
    shutil.copytree(sysconfig.get_path("stdlib"), stdlib, ignore=NOT_NEEDED)
    executable = Path(os.path.realpath(sys.executable))
    copy_binary(root, executable, f"/usr/local/bin/{VERSION}")
    for name in ("python3", "python"):
        (prefix / "bin" / name).symlink_to(VERSION)
    copy_libraries(root, list(stdlib.glob("lib-dynload/*.so")))
    for name in WHEELS_NEED:
        copy_library(root, name)
    site = stdlib / "site-packages"
    site.mkdir()
    shutil.copytree(Path(sysconfig.get_path("purelib")) / "pip", site / "pip")
    return site


def copy_dependencies(root: Path, site: Path) -> None:
    """Copies what any module of the simulator imports from this environment's packages, and the libraries of those."""
    imports = (
        "import importlib, pkgutil, sys, qwenbench.simulator as room\n"
        "for module in pkgutil.iter_modules(room.__path__): importlib.import_module(f'{room.__name__}.{module.name}')\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, check=True).stdout.split()
    installed = Path(sysconfig.get_path("purelib"))
    for name in sorted({module.partition(".")[0] for module in loaded} - {"qwenbench"}):
        parts = (f"{name}.py", f"{name}.*.so", f"{name}.libs")  # wheels keep their own libraries beside the package
        for found in (installed / name, *(path for part in parts for path in installed.glob(part))):
            if found.is_dir():
                shutil.copytree(found, site / found.name, ignore=shutil.ignore_patterns("tests", "__pycache__"))
                copy_libraries(root, list(found.rglob("*.so")))
            elif found.is_file():
                shutil.copy2(found, site / found.name)
                copy_libraries(root, [found])


def main() -> None:
    """Makes the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--wheels", type=Path)
    given = parser.parse_args()
    root: Path = given.root
    for name in ("tmp", "proc", "sys", "dev", "etc", "root", "run", "var/tmp", "bin"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for program in PROGRAMS:
        path = shutil.which(program)
        assert path is not None, program
        copy_binary(root, Path(path), f"/bin/{program}")
    site = copy_python(root)
    if given.server:
        source = Path(__file__).parents[2] / "src" / "qwenbench"
        shutil.copytree(source, site / "qwenbench")
        copy_dependencies(root, site)
    if given.wheels:
        shutil.copytree(given.wheels, root / "wheels")


if __name__ == "__main__":
    main()
