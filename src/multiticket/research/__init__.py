"""The workbench on top of the library, which never imports it: statistics, studies, reports, theory, benchmarks."""
