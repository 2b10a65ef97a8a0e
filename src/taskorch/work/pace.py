"""How many tasks to claim beyond the free slots, so that short ones need not wait for a commit each."""

AHEAD_MOST = 56
AHEAD_RUN_SECONDS = 0.005  # only kinds that run shorter than this on average are claimed ahead


class Pace:
    """Of one kind: as many as run while one commit is on its way. Starts at none; never any with 0 `slots`."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._run: float | None = None
        self._commit = 0.0

    @property
    def ahead(self) -> int:
        if self._run is None or self._run >= AHEAD_RUN_SECONDS:
            return 0
        return min(AHEAD_MOST, round(self._slots * self._commit / max(self._run, 1e-6)))

    def ran(self, seconds: float) -> None:
        self._run = seconds if self._run is None else 0.9 * self._run + 0.1 * seconds

    def committed(self, seconds: float) -> None:
        self._commit = 0.9 * self._commit + 0.1 * seconds
