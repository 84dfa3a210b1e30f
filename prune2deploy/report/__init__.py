"""Reports: from a run and its measurements to tables, Markdown, JSON, JUnit XML and one self-contained HTML page."""
