"""Who may write: the record in the bucket, the lease, and how it is handed over. It knows no database and no Litestream."""
