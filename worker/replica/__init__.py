"""The bucket: Litestream and its gate, generations, restore and retention. It knows no message."""
