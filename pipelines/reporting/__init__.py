"""A release as a page: what is read and computed (facts, comparison), drawn (charts) and written (page)."""
