"""What `answer_promptly` leaves behind."""

import gc
import sys

from batchyard.interpreter import SWITCH_SECONDS, answer_promptly


def test_threads_hand_over_quickly_and_what_is_loaded_is_left_alone() -> None:
    before = sys.getswitchinterval()
    try:
        answer_promptly()
        assert abs(sys.getswitchinterval() - SWITCH_SECONDS) < 1e-6
        assert gc.get_freeze_count() > 1_000
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
