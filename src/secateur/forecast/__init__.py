"""What a search will cost before it starts: work counted from shapes, seconds by measured or by stated rates."""
