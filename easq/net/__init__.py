"""Everything that talks to the network: single exchanges, many at once, WebSockets; and files, which they share."""

import sys

# httpx imports its own command line with rich and pygments, a third of the time of `easq put -d x`, unless that fails
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
