"""Settings for all tests: one thread of torch, or two where threads are the matter, whatever the
machine; one seed; and no rule that an earlier test has defined.
"""

import pytest
import torch

import steepest

# elsewhere tensors are small, and a second thread waits for the first: up to 100 times slower
THREADED = {"test_cpu", "test_forks", "test_memory", "test_scale", "test_shell"}


@pytest.fixture(autouse=True)
def _settings(request):
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if request.module.__name__ in THREADED else 1)
    torch.manual_seed(0)
    rules = {*steepest.rules}
    yield
    for name in {*steepest.rules} - rules:
        del steepest.rules[name]
    torch.set_num_threads(threads)
