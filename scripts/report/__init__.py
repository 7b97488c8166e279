"""A report as one HTML file that needs nothing else: pictures, charts and style are inside it."""

from scripts.report.blocks import Block, Code, Curves, Figures, Picture, Pictures, Section, Table, Text
from scripts.report.page import write_report

__all__ = [
    "Block",
    "Code",
    "Curves",
    "Figures",
    "Picture",
    "Pictures",
    "Section",
    "Table",
    "Text",
    "write_report",
]
