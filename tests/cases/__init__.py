"""What happens to unusual data: every kind of input of docs/reading.md ("What happens to ..."), made by code."""
