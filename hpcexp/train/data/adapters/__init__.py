"""Users' data as training needs it: sharded over ranks, each sample once, resumable in mid-epoch."""
