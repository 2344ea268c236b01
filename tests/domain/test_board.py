"""A task that goes on in the middle of its loop."""

from app.domain.board import Board
from app.domain.ids import TaskKey
from app.domain.status import TaskStatus
from app.domain.steps import WalkTask

A, B = TaskKey("0.a"), TaskKey("0.b")


def a_board(*tasks: WalkTask) -> Board:
    board = Board()
    board.add(tasks)
    return board


def started(board: Board, *, most: int = 9) -> list[TaskKey]:
    return board.start(min(most, board.startable(0, 9)), lambda _: True)


def test_a_task_that_has_begun_goes_on_before_one_that_has_not() -> None:
    board = a_board(WalkTask(key=A, position=0), WalkTask(key=B, position=1), WalkTask(key=TaskKey("0.c"), position=2))
    assert started(board, most=2) == [A, B]
    board.go_on(B)
    assert started(board) == [B, "0.c"]


def test_a_task_that_goes_on_twice_starts_once() -> None:
    """Two of its calls were answered for at once."""
    board = a_board(WalkTask(key=A, position=0))
    assert started(board) == [A]
    board.rest(A)
    board.go_on(A)
    board.go_on(A)
    assert started(board) == [A]
    assert started(board) == []


def test_a_task_that_is_loaded_in_the_middle_and_goes_on_starts_once() -> None:
    board = a_board(WalkTask(key=A, position=0, status=TaskStatus.RUNNING))
    board.go_on(A)
    assert started(board) == [A]
    assert started(board) == []


def test_a_task_that_waits_for_a_person_does_not_start() -> None:
    board = a_board(WalkTask(key=A, position=0, status=TaskStatus.RUNNING), WalkTask(key=B, position=1))
    board.rest(A)
    assert started(board) == [B]
    assert board.status[A] is TaskStatus.AWAITING_REVIEW
