# What is installed besides the targets, and the Debian packages that it goes into:
#
#   command   whimbrel           the command, the library it loads into programs, manual, shell completion
#   runtime   libwhimbrel0       the shared library of sessions and drivers
#   devel     libwhimbrel-dev    headers, CMake and pkg-config files; the stand-in for the kernel's HMM test device
#   python    python3-whimbrel   the Python package
#
# `cmake --install BUILD [--component NAME] [--prefix DIR]`; `cpack --config BUILD/CPackConfig.cmake`. Build first: neither does.
include(CMakePackageConfigHelpers)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/whimbrel)
install(EXPORT whimbrel NAMESPACE whimbrel:: FILE whimbrel-config.cmake DESTINATION ${config_dir} COMPONENT devel)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/whimbrel-config-version.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_BINARY_DIR}/whimbrel-config-version.cmake DESTINATION ${config_dir} COMPONENT devel)

# Relocatable: pkg-config finds the prefix from where the file lies.
file(RELATIVE_PATH prefix_from_pc /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" prefix_from_pc ${prefix_from_pc})
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/whimbrel.pc @ONLY CONTENT
"prefix=\${pcfiledir}/@prefix_from_pc@
libdir=\${prefix}/@CMAKE_INSTALL_LIBDIR@
includedir=\${prefix}/@CMAKE_INSTALL_INCLUDEDIR@

Name: whimbrel
Description: @PROJECT_DESCRIPTION@
Version: @PROJECT_VERSION@
Libs: -L\${libdir} -lwhimbrel
Cflags: -I\${includedir}
")
install(FILES ${CMAKE_BINARY_DIR}/whimbrel.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT devel)

set(extras ${PROJECT_SOURCE_DIR}/packaging)
install(FILES ${extras}/whimbrel.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT command)
install(FILES ${extras}/whimbrel_session.3 DESTINATION ${CMAKE_INSTALL_MANDIR}/man3 COMPONENT devel)
install(FILES ${extras}/whimbrel.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME whimbrel
  COMPONENT command)
install(FILES ${extras}/whimbrel.zsh DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions RENAME _whimbrel
  COMPONENT command)

set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "the whimbrel developers <whimbrel@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_COMPONENTS_ALL command runtime devel)
set(CPACK_DEBIAN_COMMAND_PACKAGE_NAME whimbrel)
set(CPACK_DEBIAN_COMMAND_DESCRIPTION "run programs in less memory than they need")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME libwhimbrel${PROJECT_VERSION_MAJOR})
set(CPACK_DEBIAN_RUNTIME_DESCRIPTION "memory larger than RAM for programs that ask for it")
set(CPACK_DEBIAN_DEVEL_PACKAGE_NAME libwhimbrel-dev)
set(CPACK_DEBIAN_DEVEL_PACKAGE_DEPENDS "libwhimbrel${PROJECT_VERSION_MAJOR} (= ${PROJECT_VERSION})")
set(CPACK_DEBIAN_DEVEL_DESCRIPTION "headers of libwhimbrel: sessions, and the kernel's device-memory migration for drivers")
if(WHIMBREL_PYTHON)
  list(APPEND CPACK_COMPONENTS_ALL python)
  set(CPACK_DEBIAN_PYTHON_PACKAGE_NAME python3-whimbrel)
  set(CPACK_DEBIAN_PYTHON_PACKAGE_DEPENDS "python3, python3-numpy")
  set(CPACK_DEBIAN_PYTHON_DESCRIPTION "NumPy arrays larger than RAM")
endif()
include(CPack)
