// What is left of an open node after exec: the client runs itself with a descriptor that it inherited.
#ifndef TESTS_MIRROR_AFTER_EXEC_H
#define TESTS_MIRROR_AFTER_EXEC_H

#define AFTER_EXEC_OPTION "--after-exec"

// Arguments: AFTER_EXEC_OPTION, descriptor. Exit status 0, or the number of the first answer that is wrong.
int after_exec(int argc, char** argv);

#endif
