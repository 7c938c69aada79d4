"""Lines of the code that runs a step, without blanks, comments and docstrings.

python bench/lines.py
"""

import ast
import io
import tokenize
from pathlib import Path

ROOMS = """
    definition.py trace.py printing.py executor.py shell.py backends codecs.py tensors.py
"""
SOURCE = Path(__file__).parent.parent / "src" / "steepest"
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def lines(file: Path) -> tuple[int, int]:
    """(lines of code, all lines)."""
    text = file.read_text()
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):  # docstrings, those of attributes too
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            code -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(code), len(text.splitlines())


if __name__ == "__main__":
    total = [0, 0]
    for room in ROOMS.split():
        path = SOURCE / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            count = lines(file)
            total = [a + b for a, b in zip(total, count, strict=True)]
            print(f"{count[0]:6} of {count[1]:5}  {file.relative_to(SOURCE)}")
    print(f"{total[0]:6} of {total[1]:5}  in all")
