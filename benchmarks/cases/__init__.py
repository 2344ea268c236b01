"""The service against plans, broken JSON and recorded answers that nobody here wrote; run by hand."""
