"""Runs Python's own tests and notes the outcome of each in a file.

    unittests.py NOTES MODULE...

A test gets the line "start ID" before it runs and "OUTCOME ID" after; what it said about a failure goes to standard
error. Tests that the file has already are left out, so that after a hang the same command goes on behind it.
"""

import sys
import traceback
import unittest

from test import support

support.use_resources = {}  # As `python -m test` without -u: nothing from the Internet, nothing that needs much of the machine.


class Notes(unittest.TestResult):
    """Appends to the file as results come, so that nothing is lost with the process."""

    def __init__(self, path):
        super().__init__()
        self.file = open(path, "a", buffering=1)

    def say(self, outcome, test):
        self.file.write(f"{outcome} {test.id()}\n")

    def startTest(self, test):
        super().startTest(test)
        self.say("start", test)

    def addSuccess(self, test):
        self.say("pass", test)

    def addSkip(self, test, reason):
        self.say("skip", test)

    def addExpectedFailure(self, test, err):
        self.say("pass", test)

    def addUnexpectedSuccess(self, test):
        self.say("fail", test)

    def addFailure(self, test, err):
        self.say("fail", test)
        print(test.id(), file=sys.stderr)
        traceback.print_exception(*err)

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addFailure(test, err)


def flat(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def main(path, *modules):
    try:
        with open(path) as notes:
            done = {line.split(" ", 1)[1].rstrip("\n") for line in notes}
    except FileNotFoundError:
        done = set()
    tests = flat(unittest.defaultTestLoader.loadTestsFromNames(modules))
    unittest.TestSuite(test for test in tests if test.id() not in done).run(Notes(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
