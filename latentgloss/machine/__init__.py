"""Efficient use of one machine: threads, background work, memory, sorting and text. Independent of latents and stages.

- `concurrency`  tasks that mostly wait on I/O, run concurrently with their results in order
- `background`   work on the host while a GPU computes
- `memory`       allocator settings that keep freed memory in the process
- `sorting`      sorting, ranking and balanced sampling with NumPy
- `printable`    text from files, models and servers without control characters
"""
