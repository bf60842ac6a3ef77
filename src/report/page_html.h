// page.html as text; the data goes in place of "/*DATA*/null".
#pragma once

namespace whimbrel::report {

extern const char kPageHtml[];

}  // namespace whimbrel::report
