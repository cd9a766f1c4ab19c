"""How large a model version may be that is downloaded; told by its listing, before it is."""

from __future__ import annotations

import math
from typing import Final

MOST_BYTES: Final = 20 << 30
MOST_FILES: Final = 1000
SPARE_BYTES: Final = 1 << 30
"""What a download leaves free on the disk."""


def judge_size(size: int, files: int, free: float = math.inf) -> str | None:
    """Returns why so many bytes in so many files are not downloaded to a disk; None where they are.

    Args:
        free: Bytes; by default so many as it takes. It is not in the reason, which would be another
            one each time.
    """
    if files > MOST_FILES:
        return f"it has more than {MOST_FILES:,} files"
    if size > MOST_BYTES:
        return f"it has {size:,} bytes; at most {MOST_BYTES:,} are taken"
    if size > free - SPARE_BYTES:
        return (
            f"it has {size:,} bytes, and the disk here has no room for them beside the "
            f"{SPARE_BYTES:,} that stay free"
        )
    return None
