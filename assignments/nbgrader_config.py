"""nbgrader's settings for the problem sets; it is read when nbgrader is run in this folder."""

import os
import sys

# nbgrader calls alembic by name, which is found only where the environment was activated; it lies beside this Python.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
# nbgrader gives no points to a graded cell that writes to stderr: no progress bars there, and no warnings.
os.environ |= {"MESA_BATCH": "1", "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
# One thread: faster for networks this small, and several hand-ins do not get in one another's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

c = get_config()  # noqa: F821 (given by nbgrader)
c.CourseDirectory.course_id = "mesa"
c.Execute.timeout = 600  # seconds a cell; the default of 30 is short for a training
c.Execute.error_on_timeout = {"ename": "Timeout", "evalue": "the cell took longer than ten minutes", "traceback": [""]}
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
