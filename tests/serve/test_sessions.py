import pytest

from medsam_tune.serve.errors import Refusal
from medsam_tune.serve.sessions import LIVENESS_SECONDS, Sessions


class Volume:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def sessions(now):
    return Sessions(Volume, most=2, idle_seconds=600.0, clock=lambda: now[0])


def test_a_client_that_gives_no_sign_of_life_is_forgotten(sessions, now):
    token = sessions.claim()
    session = sessions.find(token, active=True)
    now[0] = LIVENESS_SECONDS + 1
    with pytest.raises(Refusal, match="Connect again") as error:
        sessions.find(token, active=False)
    assert error.value.status == 410
    assert session.volume.closed


def test_signs_of_life_alone_do_not_keep_an_idle_client(sessions, now):
    token = sessions.claim()
    for second in range(0, 600, 50):
        now[0] = second
        session = sessions.find(token, active=False)
    assert sessions.remaining_seconds(session) == 600 - 550
    now[0] = 590
    sessions.find(token, active=True)
    assert sessions.remaining_seconds(session) == 600
    for second in range(600, 1190, 50):
        now[0] = second
        sessions.find(token, active=False)
    now[0] = 1191
    sessions.sweep()
    assert len(sessions) == 0


def test_places_are_given_again_when_clients_leave_or_fall_silent(sessions, now):
    first, second = sessions.claim(), sessions.claim()
    assert first != second
    assert len(first) >= 40
    with pytest.raises(Refusal, match="all 2 places") as error:
        sessions.claim()
    assert error.value.status == 503
    sessions.release(first)
    sessions.release(first)
    sessions.claim()
    now[0] = LIVENESS_SECONDS + 1
    sessions.claim()
    assert len(sessions) == 1


def test_a_client_whose_question_is_being_answered_is_not_forgotten(sessions, now):
    token = sessions.claim()
    with sessions.find(token, active=True).lock:
        now[0] = 700
        sessions.sweep()
        assert len(sessions) == 1
    sessions.sweep()
    assert len(sessions) == 0


@pytest.mark.parametrize("token", [None, "", "guessed"])
def test_who_holds_no_lease_finds_nothing(sessions, token):
    sessions.claim()
    with pytest.raises(Refusal, match="expired or never was"):
        sessions.find(token, active=True)
