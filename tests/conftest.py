"""Settings for all tests: two threads of torch, whatever the machine, one seed, and no rule that an
earlier test has defined.
"""

import pytest
import torch

import steepest


@pytest.fixture(autouse=True)
def _settings():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rules = {*steepest.rules}
    yield
    for name in {*steepest.rules} - rules:
        del steepest.rules[name]
    torch.set_num_threads(threads)
