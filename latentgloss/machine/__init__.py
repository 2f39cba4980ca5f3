"""Using one machine well: threads, background workers, memory, sorting. Knows nothing of latents.

- `concurrency`  tasks that mostly wait, run side by side with results in order
- `background`   host work beside a GPU
- `memory`       keeping freed memory in the process
- `sorting`      ordering, ranking and drawing in turns with NumPy
"""
