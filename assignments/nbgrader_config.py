"""nbgrader's settings for the problem sets; it is read when nbgrader is run in this folder."""

c = get_config()  # noqa: F821 (given by nbgrader)
c.CourseDirectory.course_id = "mesa"
c.Execute.timeout = 600  # seconds a cell; the default of 30 is short for a training
c.Execute.error_on_timeout = {"ename": "Timeout", "evalue": "the cell took longer than ten minutes", "traceback": [""]}
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
