"""Plots and the one-file page of a run; Matplotlib and Jinja are imported where they draw."""

from fairjax.report.card import model_card as model_card
from fairjax.report.curves import group_curves as group_curves
from fairjax.report.curves import score_curves as score_curves
from fairjax.report.gallery import save_gallery as save_gallery
from fairjax.report.page import write_report as write_report
from fairjax.report.plots import figure as figure
from fairjax.report.plots import lines as lines
from fairjax.report.plots import trade_off as trade_off
from fairjax.report.plots import trade_offs as trade_offs
from fairjax.report.tables import as_markdown as as_markdown
from fairjax.report.tables import summarise as summarise
from fairjax.report.tables import table_cells as table_cells
