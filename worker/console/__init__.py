"""The operators' page: one verdict, what is rejected, what can be restored, and the command for each next step.

It is a process of its own and no part of the writer, because it is needed most when the writer is dead. It asks the service
with the operator's token and reads the bucket with the operator's credentials, by the functions of `operations`; it decides
nothing itself.
"""
