"""Who is asking and what they may do: decided from what is passed in. Reads nothing, stores nothing.

``caller`` is who asks; ``tokens`` and ``tickets`` say so from what a request carries; ``access`` decides from bindings,
grants, policies and holds what may be called, and who must agree.
"""
