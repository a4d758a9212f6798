"""Reports: findings, tables, charts, the page and the console."""
