"""What the system reaches, beside what people use today, in the same run; `make bench`, see docs/performance.md."""
