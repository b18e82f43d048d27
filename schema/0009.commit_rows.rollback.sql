DROP TYPE commit_verdict;
DROP TYPE commit_event;
DROP TYPE commit_attempt;
DROP TYPE commit_step;
DROP TYPE commit_run;
