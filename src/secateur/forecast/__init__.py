"""The cost of a search before it starts: work counted from shapes, seconds by measured or by stated rates."""
