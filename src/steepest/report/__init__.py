"""Pages, figures and tables for anything that has results to show.

`styles` gives every line its colour, dashes and marker; `drawing` draws SVG; `pages` fills HTML
templates; `tables` aligns text and writes CSV. All of them take names, series and styles. They
import nothing from the rest of the package, and compute no statistics.
"""
