"""One function per benchmark that makes its record a table of the documentation."""
