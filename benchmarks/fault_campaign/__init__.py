"""The campaign of faults.py: kinds of faults, each in a file of its own, over shared fixtures, children and judges.

A kind is a module with
    cases(n, seed)          the names of its tries, about n of them; a name says all there is to repeat the try
    attempt(case, folder)   make the try in an empty folder. Returns (verdict, what was seen)
    TRIES                   how many the whole campaign makes, None if their number follows from the product
Verdicts are those of judges.py.
"""
