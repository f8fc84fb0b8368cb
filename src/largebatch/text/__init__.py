"""Text: documents from any source, WordPiece, and the prepared corpus on disk."""
