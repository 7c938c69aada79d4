"""Settings for all tests: one thread of torch, or two where threads are the matter, whatever the
machine; one seed; and no rule that an earlier test has defined.
"""

import pytest
import torch

import steepest

# elsewhere tensors are small, and a second thread waits for the first: up to 100 times slower
THREADED = {
    "tests.backends.test_cpu", "tests.backends.test_forks", "tests.backends.test_memory",
    "tests.scale.test_scale", "tests.optimizers.test_shell",
}  # fmt: skip


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
