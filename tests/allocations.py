"""A function -> the most bytes that are live at once while it runs on a CPU."""

from collections.abc import Callable

import torch


def peak_bytes(function: Callable[[], object]) -> int:
    """Return what torch has allocated at most, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
