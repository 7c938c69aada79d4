"""The tests, in folders that mirror src/steepest; a helper stands beside those who use it."""
