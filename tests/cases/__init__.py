"""What happens to unusual data: every kind of input of docs/data.md ("What happens to ..."), made by code."""
