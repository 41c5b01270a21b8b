"""CUDA's totals, asked from a driver that stands in for libcuda.so.1."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qwenbench.observe.cuda_driver import cuda_totals

CARDS = (
    ("GPU-11112222-3333-4444-5555-666677778888", 33_671_348_224),
    ("GPU-aaaabbbb-cccc-dddd-eeee-ffff00001111", 85_017_624_576),
)

_DRIVER = r"""
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
static const unsigned char names[2][16] = {
  {0x11,0x11,0x22,0x22,0x33,0x33,0x44,0x44,0x55,0x55,0x66,0x66,0x77,0x77,0x88,0x88},
  {0xaa,0xaa,0xbb,0xbb,0xcc,0xcc,0xdd,0xdd,0xee,0xee,0xff,0xff,0x00,0x00,0x11,0x11}};
static const size_t totals[2] = {33671348224UL, 85017624576UL};
static int initialised = 0;
int cuInit(unsigned flags) { initialised = 1; return getenv("NO_CARDS") ? 100 : 0; }
int cuDeviceGetCount(int *count) { *count = getenv("CUDA_VISIBLE_DEVICES") ? 1 : 2; return initialised ? 0 : 3; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  if (device == 1 && getenv("SECOND_IS_LOST")) return 999;
  *bytes = totals[device]; return 0; }
int cuDeviceGetUuid(unsigned char *uuid, int device) { memcpy(uuid, names[device], 16); return 0; }
int cuCtxCreate_v2(void *context, unsigned flags, int device) { abort(); }
int cuDevicePrimaryCtxRetain(void *context, int device) { abort(); }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 with two cards, which aborts when a context is made."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(_DRIVER)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "driver.c"], check=True, timeout=60
    )
    return folder


def asked(driver: Path, **more: str) -> dict[str, int]:
    return cuda_totals({**os.environ, "LD_LIBRARY_PATH": str(driver), **more})


def test_each_cards_total_is_told_by_its_uuid(driver: Path) -> None:
    assert asked(driver) == dict(CARDS)


def test_hidden_cards_are_told_too(driver: Path) -> None:
    assert asked(driver, CUDA_VISIBLE_DEVICES="1") == dict(CARDS)


def test_a_lost_card_leaves_the_other(driver: Path) -> None:
    assert asked(driver, SECOND_IS_LOST="1") == dict(CARDS[:1])


def test_a_driver_that_refuses_tells_nothing(driver: Path) -> None:
    assert asked(driver, NO_CARDS="1") == {}


def test_a_library_without_these_calls_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    assert asked(tmp_path) == {}
