"""How long to pause before trying again: full jitter, as "Exponential Backoff And Jitter" (AWS) recommends
it.
"""

from __future__ import annotations

import random

from easq.errors import EasqError

#: the first pause is below this, each next one below twice as much
BASE_S = 0.1
#: no pause is longer
CAP_S = 5.0


def full_jitter(failures: int) -> float:
    """Seconds to pause after the `failures`-th failure in a row (from 1): anywhere from 0 to its bound."""
    return random.uniform(0.0, min(CAP_S, BASE_S * 2.0 ** min(failures - 1, 10)))


def pause_after(error: EasqError, failures: int) -> float:
    """Return the seconds to pause after `error`: the server's Retry-After if it sent one, else full jitter.

    A little jitter is added to Retry-After, so that clients do not all come back at once.
    """
    if error.retry_after_s is None:
        return full_jitter(failures)
    return error.retry_after_s + full_jitter(1)
